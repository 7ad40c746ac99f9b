"""The HTTP API under `/api/v1`: what people and programs ask of the aggregator."""
