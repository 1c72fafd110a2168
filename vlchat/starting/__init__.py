"""A first configuration of a run, from a model, data and a GPU: what `vlchat init` writes."""
