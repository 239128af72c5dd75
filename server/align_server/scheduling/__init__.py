"""Admission, fair queue and batching; knows neither gRPC nor torch."""
