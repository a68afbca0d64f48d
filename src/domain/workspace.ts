/** The tenant that owns keys: the caller's own string (contract §1). */
export const WORKSPACE_ID_PATTERN = /^(?!\.{1,2}$)[A-Za-z0-9_.:-]{1,100}$/;

/** The reserved workspace whose keys call Claviger itself, and their environment. */
export const SYSTEM_WORKSPACE = 'system';
export const SERVICE_ENVIRONMENT = 'svc';
