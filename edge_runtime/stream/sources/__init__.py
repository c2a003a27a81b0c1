"""Where readings come from: serial ports, MQTT topics, recorded files. Each delivers one `Batch` per wake-up."""
