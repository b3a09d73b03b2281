"""The search for a CvT under a budget of multiply-adds, as for CvT-13-NAS (Table 3)."""
