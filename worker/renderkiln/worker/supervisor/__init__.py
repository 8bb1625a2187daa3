"""The supervisor: talks to Redis and the disk, keeps heartbeats and deadlines, and never loads a model itself."""
