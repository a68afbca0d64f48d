import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    // Real Chromium and real gateways have runs of their own: npm run test:browser, npm run test:gateways.
    exclude: ['test/browser/**', 'test/gateways/**', '**/node_modules/**'],
    globalSetup: ['test/support/global-setup.ts'],
    // Tests wait for databases and services more than they compute: one file more than vitest's choice for two cores.
    maxWorkers: 2,
    // For what hangs. Many tests start services of their own, and a busy machine takes ten times as long for that.
    testTimeout: 120_000,
    hookTimeout: 180_000,
  },
});
