"""Acoustic models and their decoders; knows neither gRPC nor scheduling."""
