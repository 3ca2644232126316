"""Pre-trained weights from files: MedicalNet and Kinetics CT encoders, BERT folders, and a report of what was loaded.

Files are read without executing pickled code.
"""
