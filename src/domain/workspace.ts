import type { RateLimit } from './rate-limit.ts';

/** The tenant that owns keys: the caller's own string (contract §1). */
export const WORKSPACE_ID_PATTERN = /^(?!\.{1,2}$)[A-Za-z0-9_.:-]{1,100}$/;

/** The reserved workspace whose keys call Claviger itself, and their environment. */
export const SYSTEM_WORKSPACE = 'system';
export const SERVICE_ENVIRONMENT = 'svc';

/** What a workspace's plan allows its keys; `null` does not limit. */
export interface PlanLimits {
  /** 0 is a plan without API keys. */
  readonly maxActiveKeys: number | null;
  readonly allowedScopes: readonly string[] | null;
  readonly maxKeyLifetimeDays: number | null;
}

export const NO_LIMITS: PlanLimits = Object.freeze({
  maxActiveKeys: null,
  allowedScopes: null,
  maxKeyLifetimeDays: null,
});

/** What PUT replaces as a whole (contract §6). */
export interface WorkspaceSettings {
  readonly name: string | null;
  readonly limits: PlanLimits;
  /** Shared by all its keys, beside each key's own. */
  readonly rateLimit: RateLimit | null;
  readonly disabled: boolean;
}

export interface Workspace extends WorkspaceSettings {
  readonly id: string;
  /** When it was first and last put, in milliseconds since the epoch; `null`: never. */
  readonly createdAt: number | null;
  readonly updatedAt: number | null;
}

/** A workspace that was never put: no name, no limit of any kind. */
export const DEFAULT_WORKSPACE: Omit<Workspace, 'id'> = Object.freeze({
  name: null,
  limits: NO_LIMITS,
  rateLimit: null,
  disabled: false,
  createdAt: null,
  updatedAt: null,
});

/** What a verdict on a key needs to know of its workspace. */
export type WorkspaceState = Pick<Workspace, 'disabled' | 'rateLimit'>;
