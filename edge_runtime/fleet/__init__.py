"""The host side of flashing: which devices there are, how to reach them, and how to change many of them safely.

Nothing here runs on a device. What does is the runtime's own `edge-runtime models`, reached over the system's ssh.
"""
