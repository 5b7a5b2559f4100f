"""The torch side: expert-parallel compute with replicas, routing replay and the rank session."""
