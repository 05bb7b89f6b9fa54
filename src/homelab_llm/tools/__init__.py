"""Tools: MCP tools and the agents that use them."""
