import { join } from 'node:path';
import type { Locator, Page } from 'playwright-core';
import { expect, test } from 'vitest';
import { databaseOfTest } from '../support/database.ts';
import { ROOT, type Service, startService } from '../support/service.ts';
import { openPage, type Visit } from './chromium.ts';

/*
 * An operator at /docs: authorizes, creates a key, introspects it, revokes it. With DOCS_SCREENSHOT=1 the run also
 * renews docs/swagger-ui.png.
 */

const MARGIN_PX = 16;
const SCREENSHOT = process.env.DOCS_SCREENSHOT === '1' ? join(ROOT, 'docs', 'swagger-ui.png') : undefined;

async function openDocs(): Promise<Visit & { service: Service; adminToken: string }> {
  const database = await databaseOfTest();
  const service = await startService({ database });
  const { token: adminToken } = await service.createServiceKey(['admin']);
  const visit = await openPage();
  await visit.page.goto(`${service.url}/docs`);
  await visit.page.locator('.opblock').first().waitFor();
  return { ...visit, service, adminToken };
}

test('an operator authorizes, creates a key with the example as it stands, introspects it and revokes it', async () => {
  const { page, requested, complaints, service, adminToken } = await openDocs();
  expect(await page.title()).toBe('Claviger API');

  await authorize(page, adminToken);

  const created = await execute(page, 'createKey');
  expect(created.status).toBe(201);
  const { id, key: token } = created.body.data;
  expect(token).toMatch(/^ck_live_[0-9A-Za-z]{66}$/);

  const question = JSON.stringify({ key: token, scopes: ['read'] });
  const introspected = await execute(page, 'introspect', { body: question });
  expect(introspected.status).toBe(200);
  expect(introspected.body).toMatchObject({ active: true, key_id: id, workspace_id: 'ws_acme' });

  const revoked = await execute(page, 'revokeKey', { id });
  expect(revoked.status).toBe(200);
  expect(revoked.body).toMatchObject({
    message: 'API key revoked successfully',
    data: { id, status: 'revoked', revoked_reason: 'leaked' },
  });
  expect((await service.introspect(token)).body).toMatchObject({
    active: false,
    reason: { code: 'revoked' },
  });

  const deleted = await execute(page, 'deleteKey', { id });
  expect(deleted.body.data.revoked_at).toBe(revoked.body.data.revoked_at);
  const form = await execute(page, 'introspect', { mediaType: 'application/x-www-form-urlencoded' });
  expect(form.body).toEqual({ active: false });

  expect(new Set(requested.map((url) => new URL(url).origin))).toEqual(new Set([service.url]));
  expect(requested.length).toBeGreaterThan(6);
  expect(complaints).toEqual([]);
  if (SCREENSHOT !== undefined) await keepPicture(page, created.block);
});

test('what was typed into Authorize is gone when the page is loaded again, and a call without it is refused', async () => {
  const { page, complaints, adminToken } = await openDocs();
  await authorize(page, adminToken);
  expect((await execute(page, 'getMe')).body.data).toMatchObject({ permissions: ['admin'] });
  expect(
    await page.evaluate('JSON.stringify({ ...localStorage, ...sessionStorage }) + document.cookie'),
  ).not.toContain(adminToken);

  await page.reload();
  await page.locator('.opblock').first().waitFor();
  const refused = await execute(page, 'getMe');
  expect(refused).toMatchObject({ status: 401, body: { code: 'unauthorized' } });
  // The browser itself reports the 401, and nothing else.
  expect(complaints).toEqual([expect.stringContaining('401 (Unauthorized)')]);
});

test('an address of one operation opens it', async () => {
  const { page, service } = await openDocs();
  await page.goto('about:blank');
  await page.goto(`${service.url}/docs#/Keys/createKey`);
  await page.locator('#operations-Keys-createKey.is-open').waitFor();
});

test('the headers that protect a page are on the page, and not on the API', async () => {
  const { service } = await openDocs();
  for (const path of ['/docs', '/docs/static/swagger-ui-bundle.js']) {
    const { status, headers } = await service.get(path, { as: null });
    expect(status, path).toBe(200);
    const policy = headers['content-security-policy'] ?? '';
    expect(policy).toContain("default-src 'none'");
    expect(policy).toContain("frame-ancestors 'none'");
    expect(policy).not.toMatch(/unsafe|https?:|upgrade-insecure-requests|\*/);
    expect(headers['x-content-type-options']).toBe('nosniff');
    // That a host is to be reached by HTTPS alone is not for one of its pages to say.
    expect(headers).not.toHaveProperty('strict-transport-security');
  }
  for (const path of ['/v1/me', '/healthz', '/nowhere']) {
    expect((await service.get(path)).headers, path).not.toHaveProperty('content-security-policy');
  }
  const { status, body } = await service.get('/openapi.json', { as: null });
  expect(status).toBe(200);
  expect(body.openapi).toBe('3.1.0');
});

async function authorize(page: Page, token: string): Promise<void> {
  await page.locator('.auth-wrapper .authorize').click();
  const dialog = page.locator('.modal-ux');
  await dialog.locator('#auth-bearer-value').fill(token);
  const form = dialog.locator('.auth-container').filter({ has: page.locator('#auth-bearer-value') });
  await form.locator('button.authorize').click();
  await dialog.getByRole('button', { name: 'Remove authorization' }).waitFor();
  await dialog.locator('button.btn-done').first().click();
  await dialog.waitFor({ state: 'hidden' });
}

interface Filled {
  readonly id?: string;
  readonly body?: string;
  readonly mediaType?: string;
}

/** Opens an operation, fills in what is given, leaves the rest as the page proposes it, and executes. */
async function execute(page: Page, operationId: string, { id, body, mediaType }: Filled = {}) {
  const block = page.locator(`.opblock[id$="-${operationId}"]`);
  if (!(await block.getAttribute('class'))?.includes('is-open'))
    await block.locator('.opblock-summary-control').click();
  const run = block.locator('button.execute');
  await run.waitFor();
  if (id !== undefined) await block.locator('tr[data-param-name="id"] input').fill(id);
  if (mediaType !== undefined)
    await block
      .locator('.opblock-section-request-body select[aria-label="Request content type"]')
      .selectOption(mediaType);
  if (body !== undefined) await block.locator('textarea.body-param__text').fill(body);
  const [response] = await Promise.all([
    page.waitForResponse((one) => ['fetch', 'xhr'].includes(one.request().resourceType())),
    run.click(),
  ]);
  const live = block.locator('.live-responses-table .response');
  await live.waitFor();
  expect(await live.locator('.response-col_status').textContent()).toContain(String(response.status()));
  return { block, status: response.status(), body: await response.json() };
}

/** The operation from its title to the answer, with the keys blotted out. */
async function keepPicture(page: Page, block: Locator): Promise<void> {
  await page.evaluate(`
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode())
      node.nodeValue = node.nodeValue.replace(/(ck_[a-z]+_)[0-9A-Za-z]{66}/g, '$1…');
  `);
  await page.evaluate('window.scrollTo(0, 0)');
  const operation = await block.boundingBox();
  const answer = await block.locator('.live-responses-table').boundingBox();
  if (operation === null || answer === null) throw new Error('the operation is not shown');
  const top = operation.y - MARGIN_PX;
  const clip = { x: 0, y: top, width: 1280, height: answer.y + answer.height + MARGIN_PX - top };
  await page.screenshot({ path: SCREENSHOT ?? '', fullPage: true, clip });
}
