import { defineConfig } from 'vitest/config';

/** `npm run test:gateways`: the recipes of examples/gateways/, with the real nginx and Caddy (of PATH). */
export default defineConfig({
  test: {
    include: ['test/gateways/**/*.test.ts'],
    globalSetup: ['test/support/global-setup.ts'],
    testTimeout: 60_000,
    hookTimeout: 60_000,
  },
});
