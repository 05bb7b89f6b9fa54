"""Fleet: which models are loaded, who may use them, and the processes that serve them."""
