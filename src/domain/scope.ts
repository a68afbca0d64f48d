/** What a key may do (contract §1). No wildcards: a scope means just itself. */
export const SCOPE_PATTERN = /^[a-z0-9][a-z0-9_.-]*(:[a-z0-9_.-]+)*$/;
export const MAX_SCOPE_LENGTH = 64;
export const MAX_SCOPES = 64;

/** Claviger's own permissions, the scopes of service keys: a closed list, apart from any scope catalogue. */
export const PERMISSIONS = [
  'keys:read',
  'keys:write',
  'introspect',
  'workspaces:write',
  'scopes:write',
  'audit:read',
  'admin',
] as const;

export type Permission = (typeof PERMISSIONS)[number];

export function isPermission(scope: string): scope is Permission {
  return (PERMISSIONS as readonly string[]).includes(scope);
}

/** `admin` is all of them. */
export function permits(held: readonly string[], wanted: Permission): boolean {
  return held.includes(wanted) || held.includes('admin');
}
