"""gRPC in front of the pipeline: servicers, one interceptor, and the one table of faults to status codes."""
