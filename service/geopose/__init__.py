"""The GeoPose protocol of the Open Spatial Computing Platform (OSCP), versions 1 and 2."""
