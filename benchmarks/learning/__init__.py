"""What learning is worth and what it costs: quality, throughput, simulated period, memory."""
