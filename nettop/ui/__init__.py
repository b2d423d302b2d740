"""The screen: Frames in, keys out.  The only importer of Textual; knows no kernel and no probe by name."""
