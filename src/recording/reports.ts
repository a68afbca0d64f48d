import { type Caller, reaches } from '../domain/caller.ts';
import { Failure, type InputFault, invalidInput } from '../domain/errors.ts';
import { SYSTEM_WORKSPACE } from '../domain/workspace.ts';
import type { Database } from '../storage/database.ts';
import { findWorkspacesOf } from '../storage/keys.ts';
import type { Asking, Recorder, UsageReport } from './recorder.ts';

const DAY_MS = 86_400_000;
const MAX_AGE_MS = 7 * DAY_MS;
/** How far the clock of a reporting service may be ahead of the database's. */
const TOLERANCE_MS = 5_000;

/** A report as it came in: of which workspace its key is, is for us to say. */
export type ToldReport = Omit<UsageReport, 'workspaceId'>;

/**
 * Writes what a caller reports: all of it, or, where something is wrong with any of it, nothing.
 *
 * @throws Failure `invalid_request` naming the reports whose time is not of the last week, or `not_found` naming
 * those whose key does not exist or is not for this caller to see.
 */
export async function acceptReports(
  { database, recorder }: { database: Database; recorder: Recorder },
  told: readonly ToldReport[],
  asking: Asking & { readonly caller: Caller },
): Promise<void> {
  const { caller } = asking;
  const faults = told.flatMap(({ at }, index) => timeFault(at, index, caller.now) ?? []);
  if (faults.length > 0) throw invalidInput(...faults);

  const ids = [...new Set(told.map(({ keyId }) => keyId))];
  const workspaces = await database.read((executor) => findWorkspacesOf(executor, ids));
  const reports: UsageReport[] = [];
  const unknown: InputFault[] = [];
  told.forEach((report, index) => {
    const workspaceId = workspaces.get(report.keyId);
    if (workspaceId === undefined || workspaceId === SYSTEM_WORKSPACE || !reaches(caller, workspaceId)) {
      unknown.push({ path: `reports.${index}.key_id`, message: 'there is no such key' });
    } else {
      reports.push({ ...report, workspaceId });
    }
  });
  if (unknown.length > 0) {
    throw new Failure('not_found', 'There is no such key; see `errors`. No report was taken.', {
      errors: unknown,
    });
  }
  if (reports.length > 0) await recorder.report(reports, asking);
}

function timeFault(at: number, index: number, nowMs: number): InputFault | undefined {
  const path = `reports.${index}.at`;
  if (at > nowMs + TOLERANCE_MS) return { path, message: 'must not be in the future' };
  if (at < nowMs - MAX_AGE_MS) return { path, message: 'must be within the last 7 days' };
  return undefined;
}
