"""Who renders: the supervisor, its renderer, the engine, the demo model. Never imports the producer."""
