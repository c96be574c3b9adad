"""The room between launching and training, where configurations are searched. Nothing is searched yet."""
