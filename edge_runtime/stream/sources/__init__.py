"""The sources of readings: serial ports, MQTT topics, recorded files. Each delivers one `Batch` per wake-up."""
