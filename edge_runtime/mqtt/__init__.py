"""One connection to one broker, on the event loop, with paho as the wire and nothing more."""
