"""How models write their thoughts and their calls of tools, and what reads them."""
