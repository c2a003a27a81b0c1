"""The first hour with a device: try a device file, write one, and find out why something does not work."""
