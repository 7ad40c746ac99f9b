"""`make demo`: a fleet of real daemons on real sensor data, measured against local and centralised training."""
