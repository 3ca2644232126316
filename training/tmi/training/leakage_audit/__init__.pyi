from .cohort_checks import audit_cohort as audit_cohort
from .cohort_checks import not_checked as not_checked
from .cohort_checks import require_same_cohort as require_same_cohort
from .cohort_checks import scratch_store as scratch_store
from .run_checks import LIMITS as LIMITS
from .run_checks import AuditResult as AuditResult
from .run_checks import audit_folder as audit_folder
