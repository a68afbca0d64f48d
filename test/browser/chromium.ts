import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { type Browser, chromium, type Page } from 'playwright-core';
import { onTestFinished } from 'vitest';

/** A machine that is busy with other tests takes long to draw a page. */
const TIMEOUT_MS = 60_000;
const NAMES = ['chromium', 'chromium-browser', 'google-chrome'];
const FLAGS = [
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
];

export interface Visit {
  readonly page: Page;
  /** Every URL that the page asked for, `data:` ones apart. */
  readonly requested: string[];
  /** Everything that the page complained of: console errors, exceptions, violations of its policy. */
  readonly complaints: string[];
}

/** A real headless Chromium with a profile of its own, which ends with the test. */
export async function openPage(): Promise<Visit> {
  const executablePath = process.env.CHROMIUM ?? findChromium();
  const browser: Browser = await chromium.launch({ executablePath, headless: true, args: FLAGS });
  onTestFinished(() => browser.close());
  const context = await browser.newContext({ viewport: { width: 1280, height: 1600 } });
  context.setDefaultTimeout(TIMEOUT_MS);
  const page = await context.newPage();
  const requested: string[] = [];
  const complaints: string[] = [];
  context.on('request', (request) => {
    if (!request.url().startsWith('data:')) requested.push(request.url());
  });
  page.on('websocket', (socket) => requested.push(socket.url()));
  page.on('console', (message) => {
    if (message.type() === 'error' || message.type() === 'warning') complaints.push(message.text());
  });
  page.on('pageerror', (error) => complaints.push(String(error)));
  return { page, requested, complaints };
}

function findChromium(): string {
  const folders = (process.env.PATH ?? '').split(':');
  const found = NAMES.flatMap((name) => folders.map((folder) => join(folder, name))).find((path) =>
    existsSync(path),
  );
  if (found === undefined)
    throw new Error('there is no Chromium: apt-get install -y chromium, or set CHROMIUM');
  return found;
}
