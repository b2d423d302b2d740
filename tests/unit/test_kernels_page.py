"""docs/kernels.md is what the guests' results say, and names those that there are."""

import vm_guests


def test_the_page_is_of_the_results() -> None:
    assert vm_guests.DOCUMENT.read_text() == vm_guests.document(vm_guests.load())


def test_guests_have_names_of_their_own() -> None:
    names = [guest.name for guest in vm_guests.GUESTS]
    assert len(set(names)) == len(names)
