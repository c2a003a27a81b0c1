"""What the rooms above share of the operating system: loop, log, clock, durable files, child processes, systemd."""
