"""What ran when, of real and simulated runs: spans, their recorder, Chrome traces."""
