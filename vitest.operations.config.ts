import { defineConfig } from 'vitest/config';

/** `npm run test:operations`: what an operator does, with PostgreSQL's own tools and the previous release. */
export default defineConfig({
  test: {
    include: ['test/**/*.operations.ts'],
    globalSetup: ['test/support/global-setup.ts'],
    // Each has the machine to itself.
    fileParallelism: false,
    testTimeout: 300_000,
    hookTimeout: 120_000,
  },
});
