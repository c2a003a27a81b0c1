"""`[sparkplug]`: the device as an edge node of Sparkplug B, on a connection of its own."""
