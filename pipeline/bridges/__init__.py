"""What carries hidden states from stage to stage; start with `opening.open_bridge`."""
