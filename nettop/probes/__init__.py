"""One folder a probe; base.py says what a probe is.  Users' own are found in a directory of root's, see own.py."""

from nettop.core.paths import OWN_PROBES

__path__.append(str(OWN_PROBES))
