import { spawn } from 'node:child_process';
import { expect } from 'vitest';
import { collectOutput } from './service.ts';

/** A shell as a reader would have it open. */
export interface Shell {
  /** Runs commands as if typed; answers what they printed. Fails the test when the last of them fails. */
  run(commands: string): Promise<string>;
  /** Ends it, and what still runs in its background. */
  close(): void;
}

/** Opens one that knows of this environment alone, and of none of the settings that this machine may have. */
export function openShell(cwd: string, environment: Readonly<Record<string, string>> = {}): Shell {
  const child = spawn('bash', [], {
    cwd,
    stdio: ['pipe', 'pipe', 'pipe'],
    detached: true,
    env: { ...plainEnvironment(), ...environment },
  });
  const printed = collectOutput(child);
  return {
    async run(commands) {
      const [from, errorsFrom] = [printed.stdout.length, printed.stderr.length];
      child.stdin.write(`${commands}\nprintf '@@%s@@\\n' "$?"\n`);
      await expect
        .poll(() => printed.stdout.slice(from), { timeout: 20_000, interval: 10 })
        .toMatch(/@@\d+@@\n/);
      const [, text = '', code] = /^(.*)@@(\d+)@@\n$/s.exec(printed.stdout.slice(from)) ?? [];
      expect({ code, stderr: printed.stderr.slice(errorsFrom) }).toEqual({ code: '0', stderr: '' });
      return text;
    },
    close() {
      // With all that it started and did not end.
      if (child.pid !== undefined && child.exitCode === null) process.kill(-child.pid, 'SIGKILL');
    },
  };
}

/** None of the settings that this machine or the test runner may have. */
export function plainEnvironment(): Record<string, string> {
  const kept = ['PATH', 'HOME', 'LANG', 'TMPDIR', 'USER'];
  return Object.fromEntries(
    kept.flatMap((name) => (process.env[name] === undefined ? [] : [[name, process.env[name]]])),
  );
}
