"""How bytes come from a source: in parallel parts, continued after cuts, within shares of hosts and of the line."""
