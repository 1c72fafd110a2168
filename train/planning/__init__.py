"""What a run will take, before anything is loaded: `vlchat plan`, and the first lines of `vlchat train`."""
