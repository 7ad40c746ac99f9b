"""Takes updates from any MQTT broker into the log exactly once, and brings offers, models and receipts down."""
