"""The model store: gets models from the Hub or from a folder, keeps them complete, and knows what is there."""
