"""What runs on a device. Import-free, so that servers may load `edge_client.wire` at no cost."""
