"""`fedfleet simulate`: a fleet on a virtual clock, with the real aggregator, admission, codec and training."""
