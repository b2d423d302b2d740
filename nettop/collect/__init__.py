"""The live, unprivileged side: the loader's client, what is attached, its cost, and the frames that come of it."""
