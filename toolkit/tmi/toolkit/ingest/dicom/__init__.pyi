from .ct import read_dicom_ct as read_dicom_ct
from .headers import READ_ERRORS as READ_ERRORS
from .headers import is_dicom_file as is_dicom_file
from .headers import open_dicom as open_dicom
from .rtstruct import read_rtstruct as read_rtstruct
from .seg import read_seg as read_seg
from .series import list_files as list_files
