"""Weights from outside: MedicalNet and Kinetics CT encoders, BERT folders, what was loaded and what not.

Files are safetensors or read without unpickling.
"""
