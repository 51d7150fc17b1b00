"""What neurons weigh, and removing them."""
