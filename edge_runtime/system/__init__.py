"""Access to the operating system for all other rooms: loop, log, clock, durable files, child processes, systemd."""
