"""What is measured on photographs, and fitted to them."""
