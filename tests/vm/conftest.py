"""The tests in guest/ run inside a guest, where test_guests.py starts them."""

collect_ignore = ["guest"]
