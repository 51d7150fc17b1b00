"""What neurons do: hooked models, and what is read off them."""
